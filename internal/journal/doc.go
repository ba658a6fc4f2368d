// Package journal keeps a group's log on journal volumes: it appends records in sequence order, makes them durable in
// groups, reads them back, frees them, and after a crash finds out what is left of them.
//
//	device 0   | label ×2 | superblock A | superblock B | management area ...      | data area ... |
//	device n   | label ×2 | management or data area, as the address table says ...               |
//
//	management area: ring of 128-byte entries, the slot follows from the sequence number
//	data area:       ring of bytes, each record's data at the next 4 KiB boundary; it may wrap at the ring's end
//
//	        trimmed          durable        appended
//	   free    |  read by all   |  not synced  |  free
//
// A record's data is written before its entry, so that a process killed between leaves no entry without data. Nothing
// orders them on the disk below: an entry whose data did not arrive is found by the data's checksum.
//
// What makes leftovers harmless. Every opening of the journal begins a new run: recovery writes {run, first number of
// it} to both superblocks before the journal takes anything. From that number on an entry counts only if this run
// wrote it, so what an earlier run left beyond its torn tail can never be taken for a record again, neither after a
// second crash nor when a receiver goes on in the same row of the epoch table. Cut and Reset are the same step.
//
// It grows by devices while it is in use (grow.go): the rings are cut at their heads and what is new is put in between, so that
// nothing is moved and the space is usable at once.
//
// What the disk must do: a sector of 512 bytes is written whole or not at all, and writing a sector never damages
// another. Entries share sectors, so that appending rewrites the neighbours' unchanged bytes.
//
// Not here: what records mean, who may append, when to trim. Locking of devices is package block's.
package journal
