"""`nox -s gpu`: what only a GPU can show, in one program without network or server, on random weights of real shapes."""
