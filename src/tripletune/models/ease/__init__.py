"""EASE: closed-form item-item model."""
