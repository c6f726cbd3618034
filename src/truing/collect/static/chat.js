// Helpful and ranking mode.

import { Room } from "./talk.js";

new Room(document.getElementById("talk")).begin();
