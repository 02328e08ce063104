"""Integrations with BentoML, the Hugging Face Hub and pytest."""
