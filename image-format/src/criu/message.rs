//! The messages, with CRIU's field numbers. Source: CRIU 4.2, the `images/*.proto` named at each.

use prost::Message;

/// `inventory_entry` of inventory.proto.
#[derive(Clone, PartialEq, Message)]
pub struct Inventory {
    /// Version of the images: 1 without the common magic, 2 with it.
    #[prost(uint32, required, tag = "1")]
    pub version: u32,
}

/// `pstree_entry` of pstree.proto. Numbers are those inside the container.
#[derive(Clone, PartialEq, Message)]
pub struct TaskTree {
    /// Process id.
    #[prost(uint32, required, tag = "1")]
    pub pid: u32,
    /// The parent's process id; 0 where there is none.
    #[prost(uint32, required, tag = "2")]
    pub parent: u32,
    /// Thread ids, the process id among them.
    #[prost(uint32, repeated, packed = "false", tag = "5")]
    pub threads: Vec<u32>,
}

/// `core_entry` of core.proto.
#[derive(Clone, PartialEq, Message)]
pub struct Core {
    /// Machine, as numbered by `core_entry.march`.
    #[prost(int32, required, tag = "1")]
    pub machine: i32,
    /// Registers of an x86 machine.
    #[prost(message, optional, tag = "2")]
    pub x86: Option<X86State>,
    /// What belongs to the process, in the file of its first thread.
    #[prost(message, optional, tag = "3")]
    pub task: Option<Task>,
    /// What belongs to the thread.
    #[prost(message, optional, tag = "5")]
    pub thread: Option<Thread>,
}

impl Core {
    /// The machine in the words of the OCI image specification (Go's `GOARCH`).
    #[must_use]
    pub fn architecture(&self) -> Option<&'static str> {
        Some(match self.machine {
            1 => "amd64",
            2 => "arm",
            3 => "arm64",
            4 => "ppc64le",
            5 => "s390x",
            6 => "mips64le",
            7 => "loong64",
            8 => "riscv64",
            _ => return None,
        })
    }

    /// Bits of the x86 state components that held something, as `XSTATE_BV` numbers them.
    #[must_use]
    pub fn xstate(&self) -> Option<u64> {
        Some(self.x86.as_ref()?.fpu.as_ref()?.xsave.as_ref()?.components)
    }
}

/// `task_core_entry` of core.proto.
#[derive(Clone, PartialEq, Message)]
pub struct Task {
    /// The process' name, at most 15 bytes, which need not be text: the kernel cuts names anywhere.
    #[prost(bytes = "vec", required, tag = "6")]
    pub command: Vec<u8>,
}

/// `thread_core_entry` of core.proto.
#[derive(Clone, PartialEq, Message)]
pub struct Thread {
    /// The thread's name, at most 15 bytes, which need not be text.
    #[prost(bytes = "vec", optional, tag = "13")]
    pub command: Option<Vec<u8>>,
}

/// `thread_info_x86` of core-x86.proto.
#[derive(Clone, PartialEq, Message)]
pub struct X86State {
    /// Floating point and vector registers.
    #[prost(message, optional, tag = "3")]
    pub fpu: Option<FpuRegisters>,
}

/// `user_x86_fpregs_entry` of core-x86.proto.
#[derive(Clone, PartialEq, Message)]
pub struct FpuRegisters {
    /// What goes beyond SSE.
    #[prost(message, optional, tag = "13")]
    pub xsave: Option<Xsave>,
}

/// `user_x86_xsave_entry` of core-x86.proto.
#[derive(Clone, PartialEq, Message)]
pub struct Xsave {
    /// One bit a state component in use.
    #[prost(uint64, required, tag = "1")]
    pub components: u64,
}

/// `stats_entry` of stats.proto.
#[derive(Clone, PartialEq, Message)]
pub struct Stats {
    /// Figures of a dump.
    #[prost(message, optional, tag = "1")]
    pub dump: Option<DumpStats>,
}

/// `dump_stats_entry` of stats.proto; times in microseconds.
#[derive(Clone, PartialEq, Message)]
pub struct DumpStats {
    /// How long it took until all tasks stood.
    #[prost(uint32, required, tag = "1")]
    pub freezing_time: u32,
    /// How long they stood.
    #[prost(uint32, required, tag = "2")]
    pub frozen_time: u32,
    /// How long it took to take the memory.
    #[prost(uint32, required, tag = "3")]
    pub memdump_time: u32,
    /// How long it took to write it.
    #[prost(uint32, required, tag = "4")]
    pub memwrite_time: u32,
    /// Pages of private memory that were written.
    #[prost(uint64, required, tag = "7")]
    pub pages_written: u64,
    /// Pages of shared memory that were written.
    #[prost(uint64, optional, tag = "14")]
    pub shared_pages_written: Option<u64>,
}

/// `pagemap_head` of pagemap.proto.
#[derive(Clone, PartialEq, Message)]
pub struct PagemapHead {
    /// The number in the name of the pages file.
    #[prost(uint32, required, tag = "1")]
    pub pages_id: u32,
}

/// `pagemap_entry` of pagemap.proto: a run of pages.
#[derive(Clone, PartialEq, Message)]
pub struct PagemapEntry {
    /// Address of the first page.
    #[prost(uint64, required, tag = "1")]
    pub address: u64,
    /// Count of pages in images of CRIU before 4.2; the low half of it in newer ones.
    #[prost(uint32, required, tag = "2")]
    pub short_count: u32,
    /// The pages are in the parent images (before there were flags).
    #[prost(bool, optional, tag = "3")]
    pub in_parent: Option<bool>,
    /// `PE_PARENT` 1, `PE_LAZY` 2, `PE_PRESENT` 4; absent in old images, where pages are present unless in the parent.
    #[prost(uint32, optional, tag = "4")]
    pub flags: Option<u32>,
    /// Count of pages in newer images.
    #[prost(uint64, optional, tag = "5")]
    pub count: Option<u64>,
}

impl PagemapEntry {
    /// Count of pages that lie in this dump's own pages file.
    #[must_use]
    pub fn present(&self) -> u64 {
        let present = match self.flags {
            Some(flags) => flags & 4 != 0,
            None => self.in_parent != Some(true),
        };
        if present { self.pages() } else { 0 }
    }

    /// Count of pages that a restore finds: in this dump's own pages file, or in those of its parent.
    #[must_use]
    pub fn restored(&self) -> u64 {
        match self.flags {
            Some(flags) if flags & 5 == 0 => 0,
            Some(_) | None => self.pages(),
        }
    }

    fn pages(&self) -> u64 {
        self.count.unwrap_or(self.short_count.into())
    }
}

/// `mm_entry` of mm.proto.
#[derive(Clone, PartialEq, Message)]
pub struct AddressSpace {
    /// Its mappings, by rising addresses.
    #[prost(message, repeated, tag = "14")]
    pub mappings: Vec<Mapping>,
}

/// `vma_entry` of vma.proto.
#[derive(Clone, PartialEq, Message)]
pub struct Mapping {
    /// Where it begins.
    #[prost(uint64, required, tag = "1")]
    pub start: u64,
    /// The address behind it.
    #[prost(uint64, required, tag = "2")]
    pub end: u64,
    /// One bit for each advice of madvise(2) that holds for it.
    #[prost(uint64, optional, tag = "9")]
    pub advice: Option<u64>,
}

/// `file_entry` of fdinfo.proto.
#[derive(Clone, PartialEq, Message)]
pub struct File {
    /// An internet socket.
    #[prost(message, optional, tag = "4")]
    pub socket: Option<InetSocket>,
}

/// `inet_sk_entry` of sk-inet.proto.
#[derive(Clone, PartialEq, Message)]
pub struct InetSocket {
    /// `AF_INET` 2 or `AF_INET6` 10.
    #[prost(uint32, required, tag = "3")]
    pub family: u32,
    /// `IPPROTO_TCP` 6 and others.
    #[prost(uint32, required, tag = "5")]
    pub protocol: u32,
    /// The kernel's number of the TCP state: 1 established, 7 closed, 10 listening.
    #[prost(uint32, required, tag = "6")]
    pub state: u32,
    /// Port at this end.
    #[prost(uint32, required, tag = "7")]
    pub local_port: u32,
    /// Port at the other end.
    #[prost(uint32, required, tag = "8")]
    pub remote_port: u32,
    /// Address at this end, as its bytes lie in memory.
    #[prost(uint32, repeated, packed = "false", tag = "11")]
    pub local_address: Vec<u32>,
    /// Address at the other end.
    #[prost(uint32, repeated, packed = "false", tag = "12")]
    pub remote_address: Vec<u32>,
}
