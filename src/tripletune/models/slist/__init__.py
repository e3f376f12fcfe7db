"""SLIST: closed-form item-item model of films liked together and of the next film."""
