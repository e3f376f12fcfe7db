"""Reference pages of the site, generated from the code: settings, commands, columns."""
