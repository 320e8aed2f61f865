"""What runs on the device: schedules, samplers, guidance, noise, pictures, systems. NumPy, no torch."""
