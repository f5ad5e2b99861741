"""The HTTP server over engines: the OpenAI API, metrics and a page to try models on."""
