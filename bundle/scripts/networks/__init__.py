"""The members' network, the committee, and the operators that they compute with."""
