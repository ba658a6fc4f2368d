package volume

import "math/bits"

const (
	bitsetPage  = 1 << 15 // bits; 4 KiB
	bitsetWords = bitsetPage / 64
)

// bitset is a set of block numbers in memory. It takes a bit for each block, in pages that exist where something is in
// them.
type bitset struct {
	n     int64 // members
	pages map[int64]*[bitsetWords]uint64
}

func (s *bitset) has(i int64) bool {
	p := s.pages[i/bitsetPage]
	return p != nil && p[i%bitsetPage/64]&(1<<(i%64)) != 0
}

func (s *bitset) set(i int64) {
	if s.pages == nil {
		s.pages = map[int64]*[bitsetWords]uint64{}
	}
	p := s.pages[i/bitsetPage]
	if p == nil {
		p = new([bitsetWords]uint64)
		s.pages[i/bitsetPage] = p
	}
	if w := &p[i%bitsetPage/64]; *w&(1<<(i%64)) == 0 {
		*w |= 1 << (i % 64)
		s.n++
	}
}

func (s *bitset) clear(i int64) {
	p := s.pages[i/bitsetPage]
	if p == nil {
		return
	}
	if w := &p[i%bitsetPage/64]; *w&(1<<(i%64)) != 0 {
		*w &^= 1 << (i % 64)
		s.n--
	}
}

// clearRange takes out n numbers from first on.
func (s *bitset) clearRange(first, n int64) {
	for i := first; i < first+n && s.n > 0; {
		if s.pages[i/bitsetPage] == nil {
			i = (i/bitsetPage + 1) * bitsetPage
			continue
		}
		s.clear(i)
		i++
	}
}

// each calls f for all members, in no order.
func (s *bitset) each(f func(int64)) {
	for at, p := range s.pages {
		for w, word := range p {
			for ; word != 0; word &= word - 1 {
				f(at*bitsetPage + int64(w)*64 + int64(bits.TrailingZeros64(word)))
			}
		}
	}
}

func (s *bitset) reset() { *s = bitset{} }
