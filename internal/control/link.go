package control

// LinkSettings say how one node sends to another: all groups that copy from the one to the other share them.
type LinkSettings struct {
	Limit       int64 `json:"limit"`       // bytes a second of all copy streams together; 0: none
	Connections int   `json:"connections"` // of each copy stream
}
