"""What happens inside the UNet's attention: tensor maths, and the one place that installs it."""
