"""The texts that ship with the pages, one file a room: each has ENGLISH, and GERMAN for what was translated."""
