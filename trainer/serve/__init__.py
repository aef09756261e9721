"""A finished LLM LoRA put where people can ask it: into a running vLLM or Ollama, over their own HTTP interfaces."""
