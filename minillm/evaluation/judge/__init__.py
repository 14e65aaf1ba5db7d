"""Feedback of a language model on answers, asked of an endpoint that speaks the OpenAI protocol."""
