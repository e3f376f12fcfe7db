"""What serves a tuned model: prompts of any user, answers to prompts, and recommendations to all users."""
