package vmm

import (
	"slices"
	"strconv"
	"strings"

	"github.com/godwit-vmm/godwit/devices/virtio/balloon"
	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	"github.com/godwit-vmm/godwit/devices/virtio/net"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/machine"
)

// reading is a figure of a machine at one moment.
type reading struct {
	name, help string
	counter    bool
	value      float64
	labels     []string // names and values by turns
	// bounds and counts are those of a histogram, whose value is the sum.
	bounds []float64
	counts []uint64
}

func (r *reading) key() string { return r.name + "\x00" + strings.Join(r.labels, "\x00") }

// readings are the figures of a machine.
type readings []reading

func (rs *readings) counter(name, help string, value uint64, labels ...string) {
	*rs = append(*rs, reading{name: name, help: help, counter: true, value: float64(value), labels: labels})
}

func (rs *readings) gauge(name, help string, value uint64, labels ...string) {
	*rs = append(*rs, reading{name: name, help: help, value: float64(value), labels: labels})
}

// times gives how many requests took how long.
func (rs *readings) times(name, help string, c *blk.Counts, labels ...string) {
	var bounds []float64
	for _, b := range blk.TimeBounds() {
		bounds = append(bounds, b.Seconds())
	}
	*rs = append(*rs, reading{
		name: name, help: help, counter: true, labels: labels,
		value: c.Time.Seconds(), bounds: bounds, counts: slices.Clone(c.Times[:]),
	})
}

// counters are those of the readings that count.
func (rs readings) counters() readings {
	return slices.DeleteFunc(rs, func(r reading) bool { return !r.counter })
}

// plus adds counters of the past to the readings.
func (rs readings) plus(past readings) readings {
	at := make(map[string]int, len(rs))
	for i := range rs {
		at[rs[i].key()] = i
	}
	for _, p := range past {
		if i, ok := at[p.key()]; ok {
			rs[i].value += p.value
			for k, n := range p.counts {
				rs[i].counts[k] += n
			}
		} else {
			rs = append(rs, p)
		}
	}
	return rs
}

// addMemory adds what memory the guest has.
func (rs *readings) addMemory(m *machine.Machine) {
	rs.gauge("godwit_memory_granted_bytes", "Memory that the guest may use: all but what the balloon has.", m.MemoryGranted())
	// A host that does not tell leaves it out.
	if used, err := m.MemoryUsed(); err == nil {
		rs.gauge("godwit_memory_used_bytes", "Memory of the host that the guest's takes up.", used)
	}
}

// addStats adds the figures of a machine whose disks and network cards have these IDs.
func (rs *readings) addStats(s machine.Stats, disks, nets []string) {
	for id, counts := range s.Exits {
		for _, c := range counts {
			rs.counter("godwit_vcpu_exits_total", "Exits of a processor to the VMM, by reason; intr are interruptions by the VMM itself.",
				c.Count, "vcpu", strconv.Itoa(id), "reason", reasonLabel(c.Reason))
		}
	}
	rs.counter("godwit_bus_stray_total", "Accesses of the guest to ports and addresses without a device.", s.Stray)
	rs.counter("godwit_memory_dirtied_bytes_total", "Memory that the guest has written while its writes were logged.", s.Dirtied)
	for i, d := range s.Disks {
		rs.addDisk(d, disks[i])
	}
	for i, n := range s.Nets {
		rs.addNet(n, nets[i])
	}
	if r := s.RNG; r != nil {
		rs.counter("godwit_entropy_requests_total", "Requests of the guest for random bytes.", r.Requests)
		rs.counter("godwit_entropy_bytes_total", "Random bytes that the guest has got.", r.Bytes)
	}
	if v := s.Vsock; v != nil {
		rs.gauge("godwit_vsock_connections", "Connections that the vsock device has.", v.Connections)
		rs.counter("godwit_vsock_opened_total", "Connections that the vsock device has had.", v.Opened)
		rs.counter("godwit_vsock_received_bytes_total", "Bytes that the guest has received by vsock.", v.Received)
		rs.counter("godwit_vsock_sent_bytes_total", "Bytes that the guest has sent by vsock.", v.Sent)
	}
	if h := s.HVC; h != nil {
		rs.counter("godwit_hvc_read_bytes_total", "Bytes that the guest has read from its virtio console.", h.Read)
		rs.counter("godwit_hvc_written_bytes_total", "Bytes that the guest has written to its virtio console.", h.Written)
		rs.counter("godwit_hvc_dropped_bytes_total", "Bytes that the guest has written to its virtio console and nobody took, which were dropped.", h.Dropped)
	}
	if b := s.Balloon; b != nil {
		rs.addBalloon(b)
	}
}

// reasonLabel is an exit reason as metrics call it: io for KVM_EXIT_IO, and the number
// of one without a name.
func reasonLabel(r kvm.ExitReason) string {
	if name, ok := strings.CutPrefix(r.String(), "KVM_EXIT_"); ok {
		return strings.ToLower(name)
	}
	return strconv.Itoa(int(r))
}

// addDisk adds the figures of a disk.
func (rs *readings) addDisk(d blk.Stats, id string) {
	for _, k := range []struct {
		kind   string
		counts blk.Counts
	}{{"read", d.Read}, {"write", d.Write}, {"flush", d.Flushes}, {"discard", d.Discards}} {
		rs.counter("godwit_block_requests_total", "Requests of the guest to a disk that were carried out.", k.counts.Requests, "id", id, "kind", k.kind)
		rs.counter("godwit_block_failed_total", "Requests of the guest to a disk that failed because of the host.", k.counts.Failed, "id", id, "kind", k.kind)
		rs.times("godwit_block_request_seconds", "Time that requests of the guest to a disk have taken, from when godwit saw them.", &k.counts, "id", id, "kind", k.kind)
	}
	rs.counter("godwit_block_read_bytes_total", "Bytes that the guest has read from a disk.", d.Read.Bytes, "id", id)
	rs.counter("godwit_block_written_bytes_total", "Bytes that the guest has written to a disk.", d.Write.Bytes, "id", id)
}

// addNet adds the figures of a network card.
func (rs *readings) addNet(n net.Stats, id string) {
	rs.counter("godwit_net_received_frames_total", "Frames that the guest has received.", n.Receive.Frames, "id", id)
	rs.counter("godwit_net_received_bytes_total", "Bytes that the guest has received, Ethernet headers included.", n.Receive.Bytes, "id", id)
	rs.counter("godwit_net_received_dropped_total", "Frames for the guest that it had no room for.", n.Receive.Dropped, "id", id)
	rs.counter("godwit_net_sent_frames_total", "Frames that the guest has sent.", n.Send.Frames, "id", id)
	rs.counter("godwit_net_sent_bytes_total", "Bytes that the guest has sent, Ethernet headers included.", n.Send.Bytes, "id", id)
	rs.counter("godwit_net_sent_dropped_total", "Frames of the guest that the host refused.", n.Send.Dropped, "id", id)
}

// addBalloon adds the figures of the balloon, and what the guest has told it if it has.
func (rs *readings) addBalloon(b *balloon.Stats) {
	rs.gauge("godwit_balloon_target_bytes", "Memory that the guest is asked to give up.", b.TargetPages*balloon.PageSize)
	rs.gauge("godwit_balloon_actual_bytes", "Memory that the guest has given up.", b.ActualPages*balloon.PageSize)
	rs.counter("godwit_balloon_reported_bytes_total", "Memory that the guest has reported as free.", b.Reported)
	if b.Updated.IsZero() {
		return
	}
	rs.gauge("godwit_guest_memory_total_bytes", "Memory that the guest's kernel has, as it says.", b.TotalMemory)
	rs.gauge("godwit_guest_memory_free_bytes", "Free memory, as the guest says.", b.FreeMemory)
	rs.gauge("godwit_guest_memory_available_bytes", "Memory that programs could get without swapping, as the guest says.", b.AvailableMemory)
	rs.gauge("godwit_guest_disk_caches_bytes", "Memory that caches files, as the guest says.", b.DiskCaches)
	rs.counter("godwit_guest_swap_in_bytes_total", "Memory read back from swap, as the guest says.", b.SwapIn)
	rs.counter("godwit_guest_swap_out_bytes_total", "Memory written to swap, as the guest says.", b.SwapOut)
	rs.counter("godwit_guest_major_faults_total", "Page faults that had to wait for a disk, as the guest says.", b.MajorFaults)
	rs.counter("godwit_guest_minor_faults_total", "Page faults that did not wait for a disk, as the guest says.", b.MinorFaults)
	rs.counter("godwit_guest_oom_kills_total", "Processes killed for lack of memory, as the guest says.", b.OOMKills)
}
