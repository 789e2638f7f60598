"""What happens to a bundle after it is built: it goes into an app. Nothing here needs torch."""
