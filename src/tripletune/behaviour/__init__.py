"""Behaviour tokens: after a film's title stands a token whose embedding is a projection of the film's vector.

LLaRA: Liao et al., SIGIR 2024, https://arxiv.org/abs/2312.02445. The vectors are those of a trained retriever or
specialist, so the language model reads what the title does not say: who watches the film. The prompts in the shards
stay plain text; the tokens are put in where training and ranking tokenise them.
"""
