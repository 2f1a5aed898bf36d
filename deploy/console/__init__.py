"""The console: live pages about a pool in a browser, served by control servers; and what operators do there."""
