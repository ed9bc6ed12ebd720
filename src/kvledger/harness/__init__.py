"""Other people's harnesses over a compressed cache. Each file needs its harness installed; nothing else imports them."""
