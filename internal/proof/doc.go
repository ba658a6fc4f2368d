// Package proof is a load that remembers what it did, and the check that an image is exactly a prefix of it.
//
// Every write stamps its blocks with its own number. The load keeps, for each write, two ticks of one logical clock:
// when it was issued and when it was answered. A copy that keeps the hosts' write order may be cut anywhere, but
//
//	no write may be missing that was answered before a write was issued that is there.
//
// That is the only order a host can rely on (writes in flight together may land either way), and an image for which it
// holds is a prefix of some order the storage was free to choose. Each write is also there whole or not at all, where no
// later write covers it. CheckPrefix decides both, over all volumes of a group at once.
//
// The load never has two writes to one block in flight, so the order of the writes of one block is known.
package proof
