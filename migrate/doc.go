// Package migrate moves a guest's state: it copies the memory of a guest that runs,
// in rounds over its dirty log, until so little is left that the rest is copied
// within a short pause (pre-copy). Snapshots to disk and live migration share it.
//
// The states themselves belong to the parts that they describe (vcpu.State,
// devices.SerialState and so on); what a snapshot looks like on disk is the matter
// of the package snapshot.
package migrate
