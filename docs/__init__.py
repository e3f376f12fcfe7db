"""Tools that build the documentation site; ``make docs`` runs them. The pages are the Markdown files next to them."""
