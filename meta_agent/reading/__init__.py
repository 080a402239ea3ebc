"""What the API answers, the console shows and the chat tells: rows gathered into read models."""
