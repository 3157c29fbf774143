"""What an operator pastes elsewhere, made from the settings: nginx's locations, a page's HTML, and a new configuration file."""
