"""What can stop the work, or lose it: each check is a finding with the way out."""
