// Package store keeps the control state in a bbolt file: control.Store for a single manager.
//
//	bucket "meta"      revision → 8 bytes, big endian
//	                   events   → 8 bytes: how many events are kept
//	bucket "state"     key → revision (8) | crc32c (4) | value
//	bucket "state2"    the same once more
//
// Every entry is stored twice, in pages of their own, under a checksum of key, revision and value: where one copy is
// bad the other is used, told, and written back with the next commit. Both bad is an error that names the key; nothing
// is guessed. bbolt itself makes a transaction atomic and durable (one fsync each, two meta pages).
//
// The file is locked while it is open. Watchers see changes from the moment it was opened.
package store
