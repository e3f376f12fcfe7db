"""Message passing over graphs, with a DGL and a torch back end."""
