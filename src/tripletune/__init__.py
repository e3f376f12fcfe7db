"""tripletune: two graph specialists write hints about a viewer; a language model learns to use them."""

__version__ = "0.1.0"
