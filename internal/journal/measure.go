package journal

import (
	"fmt"

	"gantline/internal/record"
)

// Above counts the records behind after and the bytes that they take of the data area, alignment included: what another
// journal needs to hold them too. ErrTrimmed: after lies below what has been freed.
func (j *Journal) Above(after record.Seq) (records uint64, bytes int64, err error) {
	j.mu.Lock()
	s, appended, head := j.s, j.appended, j.head
	err = j.usable()
	j.mu.Unlock()
	switch {
	case err != nil:
		return 0, 0, err
	case after >= appended:
		return 0, 0, nil
	case after < s.trimmed:
		return 0, 0, fmt.Errorf("%w: %d, trimmed is %d", ErrTrimmed, after, s.trimmed)
	}
	pos, last := s.trimmedPos, max(s.lastAt(after), s.trimmed)
	if last > s.trimmed {
		if pos, err = j.endOf(s, last); err != nil {
			return 0, 0, err
		}
	}
	return s.index(appended) - s.index(last), int64(head - pos), nil
}

// SizeFor is how large a device a journal of one needs to hold so many records with so many bytes of data, as Above
// counts them.
func SizeFor(records uint64, bytes int64) int64 {
	pages := max(uint64(aligned(uint64(bytes)))/pageSize, records, minData/pageSize)
	entries := aligned(max(pages, minEntries) * entrySize)
	// Create takes one entry for as many bytes as a page and an entry have, and rounds both areas to pages.
	return dataAt0 + int64(pages)*pageSize + int64(entries) + int64(entries)/32 + 4*pageSize
}
