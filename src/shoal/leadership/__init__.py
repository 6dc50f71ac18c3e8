"""Which of several heads leads: one that holds a lease, whose keeper grants it to one at a time, each time under a higher term."""
