"""What travels beside or in a prompt: words, handles, mask tokens. Imports without ComfyUI wherever the maths allows."""
