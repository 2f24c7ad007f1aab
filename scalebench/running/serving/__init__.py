"""A trained model behind HTTP: the endpoints of OpenAI's completions, and a batch that requests join and leave."""
