"""Models in the folders of Hugging Face: `config.json`, `model.safetensors` and a tokenizer."""
