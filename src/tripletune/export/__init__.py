"""Export of a tuned adapter to formats that other programs load: merged weights, a PEFT adapter, GGUF."""
