"""What is measured on a bundle: parity of its engines with the networks they came from."""
