"""What trainings learn from: pictures, references, captions, folders of them."""
