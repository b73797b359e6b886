"""Who may do what: roles, policy, certificates and tokens."""
