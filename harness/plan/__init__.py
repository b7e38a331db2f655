"""From experiments to runs and jobs: expansion, identities and cost estimates."""
