"""The members, the committee, and what they compute with."""
