// Package block has the device interface below every volume and journal, the request that travels from a host to a
// volume, and the durable bitmap. It imports nothing of ours.
//
//	volume, journal            changed map, present map, intent map
//	      │                                 │
//	      │                              Bitmap      bits in memory, pages stored twice
//	      └───────────────┬─────────────────┘
//	                   Device
//	       ┌──────────────┼──────────────┐
//	    file │        raw block device   │ Crashable
//	  (OpenFile)        (OpenFile)       (memory; tests: forgets what was not flushed)
//
// What is assumed of a disk: a 512-byte sector is written whole or not at all; sectors of one write, and writes of
// one flush period, reach the medium in any order and any selection; only a Flush that returned nil orders them.
//
// What it does not do: it orders no overlapping calls, keeps no cache of its own and retries nothing.
package block
