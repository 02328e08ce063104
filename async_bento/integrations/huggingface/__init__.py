"""Models on the Hugging Face Hub: their records for a registry, and the download of their files.

The records and the location of the files are those of BentoML 1.4.39 (`HuggingFaceModel` in
`_bentoml_sdk/models/huggingface.py`). Unlike BentoML, the HF token is sent to huggingface.co and to `$HF_ENDPOINT`
only, and not to any other endpoint that a bento names. All requests go through huggingface_hub, which
`async-bento[huggingface]` installs.
"""
