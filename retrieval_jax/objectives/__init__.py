"""What training minimises: named losses with weights, each a pure function of arrays."""
