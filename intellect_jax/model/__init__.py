"""The Llama: parameters, attention, sharding, names, sampling."""
