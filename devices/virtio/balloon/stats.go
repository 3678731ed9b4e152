package balloon

import (
	"encoding/binary"
	"fmt"
	"time"
)

// statSize is the size of one statistic: a 16-bit tag and a 64-bit value
// (§5.5.6.4). maxStats bounds how many are read from one answer.
const (
	statSize = 10
	maxStats = 64
)

// MinStatsInterval is the shortest time between two questions to the guest.
const MinStatsInterval = 10 * time.Millisecond

// Tags of the statistics (§5.5.6.4, and Linux for those above 9).
const (
	statSwapIn = iota
	statSwapOut
	statMajorFaults
	statMinorFaults
	statFreeMemory
	statTotalMemory
	statAvailableMemory
	statDiskCaches
	statHugeTLBAllocations
	statHugeTLBFailures
	statOOMKills
	statAllocStalls
	statAsyncScan
	statDirectScan
	statAsyncReclaim
	statDirectReclaim
	statTags
)

// guestStats is what the guest has said, by tag.
type guestStats [statTags]uint64

// Stats are statistics of the balloon. The names are those of Firecracker's
// balloon statistics. Sizes are in bytes, unless the name says otherwise, and
// the guest's numbers are what the guest says, which need not be true.
type Stats struct {
	// TargetPages and TargetMiB are what the guest is asked to give up.
	TargetPages uint64 `json:"target_pages"`
	TargetMiB   uint64 `json:"target_mib"`
	// ActualPages and ActualMiB are what it has given up.
	ActualPages uint64 `json:"actual_pages"`
	ActualMiB   uint64 `json:"actual_mib"`
	// Reported is how much was given back to the host because the guest
	// reported it as free, all in all.
	Reported uint64 `json:"reported"`

	// Updated is when the guest has told what follows; zero if it has not.
	Updated time.Time `json:"updated,omitzero"`

	SwapIn             uint64 `json:"swap_in"`
	SwapOut            uint64 `json:"swap_out"`
	MajorFaults        uint64 `json:"major_faults"`
	MinorFaults        uint64 `json:"minor_faults"`
	FreeMemory         uint64 `json:"free_memory"`
	TotalMemory        uint64 `json:"total_memory"`
	AvailableMemory    uint64 `json:"available_memory"`
	DiskCaches         uint64 `json:"disk_caches"`
	HugeTLBAllocations uint64 `json:"hugetlb_allocations"`
	HugeTLBFailures    uint64 `json:"hugetlb_failures"`
	OOMKills           uint64 `json:"oom_kill"`
	AllocStalls        uint64 `json:"alloc_stall"`
	// AsyncScan to DirectReclaim are in pages of the guest.
	AsyncScan     uint64 `json:"async_scan"`
	DirectScan    uint64 `json:"direct_scan"`
	AsyncReclaim  uint64 `json:"async_reclaim"`
	DirectReclaim uint64 `json:"direct_reclaim"`
}

// Stats returns the statistics, the guest's part of them as of its last answer.
func (d *Device) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	g, mib := &d.guest, uint64(1<<20/PageSize)
	target, actual := uint64(d.field(configNumPages)), d.given.count
	return Stats{
		TargetPages: target, TargetMiB: target / mib,
		ActualPages: actual, ActualMiB: actual / mib,
		Reported: d.reported,
		Updated:  d.updated,
		SwapIn:   g[statSwapIn], SwapOut: g[statSwapOut],
		MajorFaults: g[statMajorFaults], MinorFaults: g[statMinorFaults],
		FreeMemory: g[statFreeMemory], TotalMemory: g[statTotalMemory],
		AvailableMemory: g[statAvailableMemory], DiskCaches: g[statDiskCaches],
		HugeTLBAllocations: g[statHugeTLBAllocations], HugeTLBFailures: g[statHugeTLBFailures],
		OOMKills: g[statOOMKills], AllocStalls: g[statAllocStalls],
		AsyncScan: g[statAsyncScan], DirectScan: g[statDirectScan],
		AsyncReclaim: g[statAsyncReclaim], DirectReclaim: g[statDirectReclaim],
	}
}

// SetStatsInterval changes how often the guest is asked about its memory; 0 is
// never.
func (d *Device) SetStatsInterval(interval time.Duration) error {
	if interval != 0 && interval < MinStatsInterval {
		return fmt.Errorf("balloon statistics every %v: want at least %v, or 0 for none", interval, MinStatsInterval)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.interval = interval
	if d.service == nil {
		return nil
	}
	return d.service.setTimer(interval)
}

func (d *Device) setStats(g guestStats) {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.guest, d.updated = g, now
}

// parseStats reads an answer. What has an unknown tag is ignored.
func parseStats(p []byte) guestStats {
	var g guestStats
	for ; len(p) >= statSize; p = p[statSize:] {
		if tag := binary.LittleEndian.Uint16(p); tag < statTags {
			g[tag] = binary.LittleEndian.Uint64(p[2:])
		}
	}
	return g
}
