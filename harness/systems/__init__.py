"""What models cost on real systems, by closed form and by simulation, as records."""
