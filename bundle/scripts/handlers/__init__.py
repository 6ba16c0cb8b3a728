"""Event handlers for trainers and evaluators."""
