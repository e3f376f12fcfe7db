"""Promotion of an adapter to champion."""
