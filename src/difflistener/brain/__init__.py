"""From what a speaker says and shows to how a listener moves. `from difflistener.brain.model import Brain`."""
