"""Models that live on the Hugging Face Hub: what a registry is told of one, and its files, in the cache of HF.

What is told, and where the files go, is what BentoML 1.4.39 has it (`HuggingFaceModel` in
`_bentoml_sdk/models/huggingface.py`). In one thing this is stricter than BentoML: the HF token goes to huggingface.co
and to `$HF_ENDPOINT`, not to whatever endpoint a bento names. What speaks to the Hub is huggingface_hub, which comes
with `async-bento[huggingface]`.
"""
