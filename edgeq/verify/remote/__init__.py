"""Running artifacts on a real device: a board by ssh, a phone by adb."""
